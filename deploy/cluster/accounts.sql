-- MariaDB: the database and its accounts. On host 1, once: mariadb <accounts.sql. Galera copies them to the others.
-- See docs/cluster.md.
--
-- Replace the passwords, and 10.77.0.% with the network of your hosts.

CREATE DATABASE backline CHARACTER SET utf8mb4;

-- Backline reads and writes rows. Only migrations may change tables.
CREATE USER backline@'10.77.0.%' IDENTIFIED BY 'DATABASE_PASSWORD';
GRANT SELECT, INSERT, UPDATE, DELETE ON backline.* TO backline@'10.77.0.%';
CREATE USER backline_migrate@'10.77.0.%' IDENTIFIED BY 'MIGRATE_PASSWORD';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES ON backline.* TO backline_migrate@'10.77.0.%';
