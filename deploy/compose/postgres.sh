#!/bin/bash
# Once, when the data directory was made: a role and a database for each service, its own and nobody else's; then the
# superuser has no password any more, so it is let in by the container's own socket alone.
set -euo pipefail
for name in keys tickets usage stats; do
  psql --username=postgres --dbname=postgres --quiet --set=ON_ERROR_STOP=1 --set=name="$name" <<'SQL'
\set password `cat "/run/secrets/":name`
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name"
  TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8';
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
psql --username=postgres --dbname=postgres --quiet --set=ON_ERROR_STOP=1 --command="ALTER ROLE postgres PASSWORD NULL"
