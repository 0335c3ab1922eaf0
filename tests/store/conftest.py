from tests.servers import rclone_s3, versitygw

__all__ = ["rclone_s3", "versitygw"]
