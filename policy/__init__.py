"""What no stack of this project may declare: rules, exemptions, and the policy pack that Pulumi's engine runs."""
