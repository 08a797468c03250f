"""The `kubernetes` provider: server-side apply, with the waiting, replacing and naming rules of the real one."""
