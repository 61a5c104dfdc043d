"""Metrics about emails that wait for the mail server."""

from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.infra import database
from app.infra.database import reading
from app.models import OutgoingMail


class MailCollector(Collector):
    """Reports how many emails wait, and how long. Needs an application context."""

    def collect(self) -> Iterator[Metric]:
        """Read the numbers from the database."""
        now = database.read_db_now()
        statement = sa.select(sa.func.count(), sa.func.min(OutgoingMail.created_at))
        with reading() as db:
            count, oldest = db.execute(statement.where(OutgoingMail.expires_at > now)).one()
        yield GaugeMetricFamily("backline_mail_queue", "Emails that the mail server has not accepted.", count)
        yield GaugeMetricFamily(
            "backline_mail_oldest_seconds",
            "For how long the oldest of them has been waiting.",
            (now - oldest).total_seconds() if oldest is not None else 0.0,
        )
