"""The commands of `hf-lpwd`, one file each."""
