"""Settings of PEFT's LoRA that vLLM takes or refuses when it loads an adapter: what the gate must say before."""

from __future__ import annotations

from typing import Any

AS_PEFT_SAVES_IT: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "bias": "none",
    "exclude_modules": None,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "modules_to_save": None,
    "qalora_group_size": 16,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}

REFUSED_BY_VLLM: dict[str, list[Any]] = {
    "use_dora": [True],
    "lora_bias": [True],
    "init_lora_weights": ["pissa", "pissa_niter_16", "PiSSA", "olora", "corda", "loftq", "not-known-yet"],
    "alora_invocation_tokens": [[5, 6, 7]],
    "layer_replication": [[[0, 2], [1, 2]]],
    "use_bdlora": [{"nblocks": 2}],
    "use_qalora": [True],
    "modules_to_save": [["lm_head"]],
    "bias": ["all", "lora_only"],
}
TAKEN_BY_VLLM: dict[str, list[Any]] = {
    "init_lora_weights": [True, False, "gaussian", "EVA", "eva", "orthogonal", "mica", "lora_ga"],
    "alora_invocation_tokens": [None, []],
    "layer_replication": [None],
    "use_bdlora": [None],
    "modules_to_save": [None, []],
    "rank_pattern": [None, {}, {"o_proj_of_another_model": 16}],
    "alpha_pattern": [None, {"q_proj": 64}],
    "use_rslora": [True],
    "target_modules": [["q_proj", "v_proj", "k_proj", "o_proj", "c_attn", "W_pack"], "all-linear"],
    "exclude_modules": [["o_proj"], "o_proj"],
}
FIELDS_OF_VLLM = {
    *("r", "lora_alpha", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora", "lora_bias"),
    *("init_lora_weights", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"),
    *("rank_pattern", "alpha_pattern", "vllm_lora_scaling_factor", "vllm_max_position_embeddings"),
}
"""Of vllm.lora.peft_helper.PEFTHelper, which decides at load what is refused."""
