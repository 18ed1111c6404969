"""Stores that answer over the network: objects in buckets, files of web servers and of the hub.

traffic   how many requests were made, and how many bytes came
patience  what fails in passing is asked again, a few times
client    what is asked of the client of a store
known     what is known of an object: what it was, pieces of it, and what they must hold
far       an object, opened: its pieces fetched several at a time, and ahead
uploads   a new object, whose parts are sent as they become full
clients   the clients: the web, S3, Azure, fsspec
remote    a store by its client
"""
