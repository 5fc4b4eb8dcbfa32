"""The what-if page: live on this machine, or as one file that opens anywhere."""
