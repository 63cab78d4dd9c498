"""Students: pairs drawn from the exact sampler, distillation, and how near a student's distribution is."""
