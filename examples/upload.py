"""Uploads a file, and goes on where it was when it is run again. pip install tuspy && python upload.py FILE

Outside --dev with BONGSU_ACCESS_TOKEN=$(bongsu token bob).
"""

import os
import sys
from pathlib import Path

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

url = os.environ.get("BONGSU_URL", "http://127.0.0.1:8000")
token = os.environ.get("BONGSU_ACCESS_TOKEN")
path = Path(sys.argv[1])

client = TusClient(f"{url}/files/", headers={"Authorization": f"Bearer {token}"} if token else {})
storage = FileStorage("uploads.json")
uploader = client.uploader(
    str(path),
    chunk_size=16 * 1024 * 1024,  # this client reads a chunk into memory
    metadata={"filename": path.name},
    upload_checksum=True,
    retries=5,
    retry_delay=2,
    store_url=True,
    url_storage=storage,
)
uploader.upload()
# So that the same file can be uploaded again.
with path.open("rb") as file:
    storage.remove_item(uploader.fingerprinter.get_fingerprint(file))
print(uploader.url.rpartition("/")[2])
