"""What runs in production: the queue, the indexer and the stores that several processes share.

A file that arrives is put into the file store (`files`), and a job that names it by hash into NATS
JetStream (`queue`). Workers (`indexer`) take the jobs one by one and bring the document store
(`stores`) up to date. `local` starts the servers for all this on one machine.
"""

# First, as it sets what Haystack looks at when it is imported: no telemetry.
import nim_cookbook as nim_cookbook
