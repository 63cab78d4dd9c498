"""Large sets of images in shards: files that any number of processes write, with the same bytes however the set is split."""
