"""Imitations of what this machine cannot have: plugins of the Pulumi engine, and what moto lacks of AWS.

What for: the real engine runs this project's own program here, without an account. `aws` reaches the emulated AWS through
boto3; `eks` registers the children of the real component; `docker_build` pushes nothing, and its digest follows the
files; `random` makes passwords; `language_python` runs the program under a CLI that was built without its language
hosts; `moto_gaps` is moto's server, filled up to what the program calls. `provider` and `values` are Pulumi's protocol,
which all plugins share. They prove the program's logic, its order and its teardown; what AWS would say they do not prove.

What they refuse: everything that the program does not emit. An unknown type, property, option or setting is an error that
names it, never ignored, so that no stack passes here by what was left out.

How to throw it away: nothing imports this package but `local.engine`: `plugins` links plugins into a PULUMI_HOME, `cloud`
starts `moto_gaps`. For one plugin, put the real one in its place there, and delete its module with its tests in
tests/engine; to prove that it may go, run the others: they know no plugin. Without an emulated AWS the whole folder goes.
"""
