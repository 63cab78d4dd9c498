"""Students: networks that do a flow block of an autoregressive flow in one pass, learned from the block itself."""
