-- The users of `lockgate dev`: Django's auth_user as its migrations make it on SQLite, with two users.
CREATE TABLE auth_user (
    id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    password varchar(128) NOT NULL,
    last_login datetime NULL,
    is_superuser bool NOT NULL,
    username varchar(150) NOT NULL UNIQUE,
    last_name varchar(150) NOT NULL,
    email varchar(254) NOT NULL,
    is_staff bool NOT NULL,
    is_active bool NOT NULL,
    date_joined datetime NOT NULL,
    first_name varchar(150) NOT NULL
);

-- "!" is Django's value for a password that never matches.
INSERT INTO auth_user VALUES
    (1, '!', NULL, 0, 'alice', 'Liddell', 'alice@example.com', 0, 1, '2026-01-01 00:00:00', 'Alice'),
    (2, '!', NULL, 0, 'bob', 'Builder', 'bob@example.com', 0, 1, '2026-01-01 00:00:00', 'Bob');
