"""What every command does around its work: flags, checks before torch, errors, progress, shares, claims."""
