"""A recipe becomes a ticket: plan, train, select, record, compare."""
