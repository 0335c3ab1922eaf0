"""Commands of the `stillframe` program: parse, call, show."""
