-- Commands are forgotten when nobody may repeat them any more (`shared.eventstore.reserve_id`).
CREATE INDEX commands_by_age ON commands (recorded_at);
