"""GLUE, CLUE and FewCLUE: what the tasks are, reading their files, scoring, and writing leaderboard files."""
