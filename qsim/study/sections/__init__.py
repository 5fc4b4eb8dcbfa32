"""The sections of the report, one file each: its text, its figures, and the sentence that says what to see in each."""
