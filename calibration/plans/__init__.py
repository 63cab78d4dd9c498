"""How tokens are decoded, or an ODE integrated, in fewer runs: measured, searched, checked, stored."""
