"""Does every way of running a bundle give the same numbers?"""
