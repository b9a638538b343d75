"""From the rows that a project names to token ids with labels, mixed by trait and audited."""
