"""What every layer shares: ids, sizes, errors, settings, messages. Standard library only."""
