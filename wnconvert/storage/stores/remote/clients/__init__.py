"""The clients of stores, each imported where its scheme is met.

lines        connections to web servers, by urllib3
web          files of web servers
s3           objects of S3, and of those that speak its language
keys         what proves to Azure's storage who asks
azure        blobs of Azure's storage
filesystems  files of any file system of fsspec, and so of the hub
"""
