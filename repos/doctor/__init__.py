"""The doctor: is every promise kept, asked of the database alone, or of remotes, targets and machines as well.

What is due, and what is newest, is said here in words of its own and not borrowed from the pipeline: an examiner that shares
the code shares its faults. Only the predicates for what no rule allows are shared, with the resync (repos.forgotten).
"""
