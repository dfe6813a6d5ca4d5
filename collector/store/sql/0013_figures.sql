-- What /metrics asks of messages that were given up, without a look at those that were sent.

CREATE INDEX notification_messages_dead ON notification_messages (target, made) WHERE state = 'dead';
