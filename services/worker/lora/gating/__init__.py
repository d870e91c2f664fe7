"""Which components act: a step's index tables, the forms that compute them, rules that decide per token."""
