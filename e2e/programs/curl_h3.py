"""curl with HTTP/3, as curl_cffi brings it, under as much of curl's command line as the tests use.

Debian's curl is built without HTTP/3; this is the same library, with it.
"""

import argparse
import sys

from curl_cffi import Curl, CurlHttpVersion, CurlInfo, CurlOpt

parser = argparse.ArgumentParser()
for flag in ("--disable", "--silent", "--show-error"):
    # This one reads no configuration, shows no progress, and says what is wrong.
    parser.add_argument(flag, action="store_true")
parser.add_argument("--http3-only", action="store_true", required=True)
parser.add_argument("--cacert", required=True)
parser.add_argument("--data-binary")
parser.add_argument("--write-out", default="")
parser.add_argument("url")
arguments = parser.parse_args()

curl = Curl()
curl.setopt(CurlOpt.URL, arguments.url.encode())
curl.setopt(CurlOpt.HTTP_VERSION, CurlHttpVersion.V3ONLY)
curl.setopt(CurlOpt.CAINFO, arguments.cacert.encode())
curl.setopt(CurlOpt.WRITEFUNCTION, sys.stdout.buffer.write)
if arguments.data_binary is not None:
    curl.setopt(CurlOpt.POSTFIELDS, arguments.data_binary.encode())
curl.perform()

VERSIONS = {1: "1.0", 2: "1.1", 3: "2", 30: "3"}
more = arguments.write_out.replace("%{http_code}", str(curl.getinfo(CurlInfo.RESPONSE_CODE)))
version = curl.getinfo(CurlInfo.HTTP_VERSION)
more = more.replace("%{http_version}", VERSIONS.get(version, str(version)))
sys.stdout.buffer.write(more.encode())
