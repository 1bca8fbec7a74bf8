from collections.abc import Mapping

from django.db import connection, models


class Counter(models.Model):
    """A number that only rises, kept where every worker can add to it and /metrics can read it."""

    name = models.CharField(max_length=80)
    # "" or one label and its value, as in `result=ok`.
    label = models.CharField(max_length=80, blank=True, default="")
    value = models.FloatField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["name", "label"], name="counter_once")]

    def __str__(self) -> str:
        return f"{self.name}{{{self.label}}}"

    @staticmethod
    def add(amounts: Mapping[tuple[str, str], float]) -> None:
        """Add to several counters, in one order for all processes, so that two of them cannot wait for each other.

        One statement, which makes those that are missing: it takes its rows in the order in which it lists them.
        """
        rows = [(name, label, amount) for (name, label), amount in sorted(amounts.items()) if amount]
        if not rows:
            return
        table = connection.ops.quote_name(Counter._meta.db_table)
        sql = (
            f"INSERT INTO {table} (name, label, value) VALUES {', '.join(['(%s, %s, %s)'] * len(rows))} "  # noqa: S608
            f"ON CONFLICT (name, label) DO UPDATE SET value = {table}.value + excluded.value"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, [value for row in rows for value in row])
