"""STARFlow and TARFlow: flow blocks, both directions, the likelihood."""
