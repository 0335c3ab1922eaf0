"""The protocol of Linux FUSE (include/uapi/linux/fuse.h, version 7.45), bytes in and bytes out."""
