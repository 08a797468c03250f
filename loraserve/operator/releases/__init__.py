"""From stack to stack: judged, promoted, watched, rolled back."""
