"""The words of this project: records, errors and close reasons. They know nothing and import nothing above."""
