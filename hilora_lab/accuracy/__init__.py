"""Every routing strategy on one testbed: the right answers, what they cost, and how sure the numbers are."""
