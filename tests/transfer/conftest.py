from tests.servers import rclone_s3, versitygw
from tests.transfer.rig import rig

__all__ = ["rclone_s3", "rig", "versitygw"]
