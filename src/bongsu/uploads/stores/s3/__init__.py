"""Storage in a bucket of S3, or of anything that speaks its protocol; needs what `bongsu[s3]` installs."""
