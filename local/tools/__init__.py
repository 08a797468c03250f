"""The programs that the local stack needs: found on the machine, built from source, or Debian's."""
