"""What the scripts of this folder share: data, wrong trees, exact oracles, ranks, tables."""
