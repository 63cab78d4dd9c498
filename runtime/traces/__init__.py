"""What a way of running a bundle computes for given noise, recorded to be compared."""
