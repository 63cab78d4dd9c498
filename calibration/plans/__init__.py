"""Plans with fewer passes of the network: measured, searched, checked, stored."""
