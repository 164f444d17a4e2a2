"""The one outbound HTTP client of our own code: allow-listed hosts, checked addresses, bounded everything.

`policy` decides who may be talked to, `retry` and `ranges` what an answer means; these three are pure. `trust`
reads proxies and certificates of the user's environment, `connect` opens sockets to checked addresses only,
`client` follows redirects, `download` streams a file and goes on where it stopped.
"""
