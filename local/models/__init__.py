"""The local stack's base model and adapters: tiny, but really trained, so that answers tell who gave them."""
