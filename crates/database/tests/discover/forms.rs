//! Each form as apps have it.

use backstay_database::discover::{environment, is_candidate};

use crate::{look, one, told};

#[test]
fn addresses_in_env_files() {
    let text = r#"
# the database
APP_ENV=production
export DATABASE_URL="postgres://u:p%40ss@db.example:5433/app?sslmode=require" # main
REPORTS_DATABASE_URL = 'mysql2://u:$HOME@h/reports'
JAWSDB_URL=mysql://j:s@jaws.example:3306/x   # comment
CLEARDB_DATABASE_URL=mysql://c:d%23e@clear.example/heroku?reconnect=true
POSTGRES_URL=`postgresql://h/backticks`
PASSWORD=geheim
MYSQL_URL="mysql://root:${PASSWORD}@${MYSQLHOST:-127.0.0.1}:3306/app"
CACHE_DATABASE_URL=redis://h:6379
OTHER_DB_URL=postgres://${NOWHERE}@h/app
EMPTY_DATABASE_URL=
TODO_DATABASE_URL=postgres://u:<password>@h/app
MYSQLCONNSTR_localdb=Database=localdb;Data Source=127.0.0.1:54306;User Id=azure;Password=6#vWHD_$
ConnectionStrings__Main="Server=h;Database=app;User Id=u;Password=p"
"#;
    assert_eq!(
        one(".env", text),
        [
            "CLEARDB_DATABASE_URL: MySql MySQL clear.example:3306 heroku c d#e",
            "Main: SQLServer SQL Server h:1433 app u p (Nothing in it tells the kind of database; taken for one of SQLServer)",
            "DATABASE_URL: PostgreSQL PostgreSQL db.example:5433 app u p@ss",
            "JAWSDB_URL: MySql MySQL jaws.example:3306 x j s",
            "localdb: MySql MySQL 127.0.0.1:54306 localdb azure 6#vWHD_$",
            "MYSQL_URL: MySql MySQL 127.0.0.1:3306 app root geheim",
            "POSTGRES_URL: PostgreSQL PostgreSQL h:5432 backticks - -",
            "REPORTS_DATABASE_URL: MySql MySQL h:3306 reports u $HOME",
            "CACHE_DATABASE_URL not: it is an address of something else than a database that can be linked",
            "OTHER_DB_URL not: a part of it is filled in from elsewhere",
            "TODO_DATABASE_URL not: a part of it is filled in by something else",
        ]
    );
}

#[test]
fn sets_of_variables() {
    let laravel = "DB_CONNECTION=mysql\nDB_HOST=127.0.0.1\nDB_PORT=3306\nDB_DATABASE=app\nDB_USERNAME=root\n\
                   DB_PASSWORD=\"se\\\"c \\$ret#1\"\n";
    assert_eq!(one(".env", laravel), ["DB: MySql MySQL 127.0.0.1:3306 app root se\"c $ret#1"]);
    let sqlite = "DB_CONNECTION=sqlite\nDB_HOST=127.0.0.1\n";
    assert_eq!(one("site/.env", sqlite), ["DB: Custom SQLite file site/database/database.sqlite - - -"]);
    let socket = "DB_CONNECTION=mysql\nDB_SOCKET=/run/mysqld/mysqld.sock\nDB_DATABASE=app\nDB_USERNAME=u\nDB_PASSWORD=";
    assert_eq!(one(".env", socket), ["DB: MySql MySQL socket /run/mysqld/mysqld.sock 3306 app u -"]);
    let pg = "PGHOST=h\nPGDATABASE=app\nPGUSER=u\nPGPASSWORD=p";
    assert_eq!(one(".env", pg), ["PG: PostgreSQL PostgreSQL h:5432 app u p"]);
    // The container of a server is set up by these, which is no connection.
    assert_eq!(one(".env", "POSTGRES_DB=app\nPOSTGRES_USER=u\nPOSTGRES_PASSWORD=p"), [""; 0]);
    assert_eq!(one(".env", "DB_HOST=h\nDB_NAME=app"), ["DB not: nothing tells its kind of database"]);
    assert_eq!(
        one(".env", "DB_HOST=h\nDB_NAME=app\nDB_PORT=5432"),
        ["DB: PostgreSQL PostgreSQL h:5432 app - -"]
    );
    assert_eq!(
        one(".env", "DB_CONNECTION=oracle\nDB_HOST=h"),
        ["DB not: its kind of database is none that can be linked"]
    );
    assert_eq!(
        one(".env", "DB_CONNECTION=mysql\nDB_HOST=h\nDB_DATABASE=a\nDB_PASSWORD=${VAULT}"),
        ["DB not: `DB_PASSWORD` is filled in from elsewhere"]
    );
}

#[test]
fn a_special_file_is_read_over_the_general_one() {
    let general = "DB_CONNECTION=mysql\nDB_HOST=dev\nDB_DATABASE=app\nDB_USERNAME=u\nDB_PASSWORD=p";
    let found = look(&[(".env", general), (".env.production", "DB_HOST=prod"), (".env.local", "X=1")]);
    assert_eq!(told(&found), ["DB: MySql MySQL dev:3306 app u p", "DB_2: MySql MySQL prod:3306 app u p"]);
    assert_eq!(found.strings[1].found_in, ".env.production");
    // The same twice is one.
    assert_eq!(told(&look(&[(".env", general), (".env.local", general)])).len(), 1);
}

#[test]
fn app_settings_of_dotnet() {
    let text = "\u{feff}{
  // the usual ones
  \"Logging\": { \"LogLevel\": { \"Default\": \"// no comment, \\\"quoted\\\"\" } },
  \"ConnectionStrings\": {
    /* the main one, */
    \"DefaultConnection\": \"Server=tcp:h.database.windows.example,1433;Initial Catalog=app;User ID=u;Password=p;q\",
    \"Quoted\": \"Host=h;Database=app;Username=u;Password='a;b\\u0022'\",
    \"Old\": \"Server=h;Database=old;Integrated Security=true\",
    \"Plain\": \"Server=h;Database=plain;User Id=u;Password=p\",
    \"Template\": \"Server=h;User Id=u;Password={your_password}\",
    \"Storage\": \"DefaultEndpointsProtocol=https;AccountName=x;AccountKey=y==\",
    \"Empty\": \"\",
    \"File\": \"Data Source=app.db\",
  },
}";
    assert_eq!(
        one("appsettings.Production.json", text),
        [
            "File: Custom SQLite file app.db - - -",
            "Old: SQLServer SQL Server h:1433 old - -",
            "Plain: SQLServer SQL Server h:1433 plain u p (Nothing in it tells the kind of database; taken for one of SQLServer)",
            "Quoted: PostgreSQL PostgreSQL h:5432 app u a;b\"",
            "DefaultConnection not: The connection string cannot be used: a part of it is not of the form `key=value`",
            "Storage not: The connection string cannot be used: nothing in it tells the kind of database; give it the type MySql, PostgreSQL, SQLServer or SQLAzure",
            "Template not: a part of it is filled in by something else",
        ]
    );
    assert_eq!(one("appsettings.json", "{ \"x\": "), [" not: it cannot be read as JSON"]);
    assert_eq!(one("appsettings.json", "{}"), [""; 0]);
    assert_eq!(
        one("appsettings.json", "{\"ConnectionStrings:A\": \"postgres://h/a\"}"),
        ["A: PostgreSQL PostgreSQL h:5432 a - -"]
    );
}

#[test]
fn web_config() {
    let text = r#"<?xml version="1.0"?>
<configuration>
  <appSettings><add name="x" connectionString="Server=no;Database=no"/></appSettings>
  <connectionStrings>
    <!-- <add name="Commented" connectionString="Server=h;Database=x;Uid=u;Pwd=p"/> -->
    <add name="Main" connectionString="Data Source=.\SQLEXPRESS;Initial Catalog=app;User Id=u;Password=a&amp;b&quot;" providerName="System.Data.SqlClient" />
    <add name="Shop" connectionString="Server=h;Database=shop;Uid=u;Pwd=p" providerName="MySql.Data.MySqlClient" />
    <add name="Pg" connectionString="Server=h;Database=pg;User Id=u;Password=p" providerName="Npgsql" />
    <add name="Model" connectionString="metadata=res://*/M.csdl|res://*/M.ssdl;provider=System.Data.SqlClient;provider connection string=&quot;data source=h;initial catalog=ef;user id=u;password=p&quot;" providerName="System.Data.EntityClient" />
    <add name="LocalSqlServer" connectionString="data source=.\SQLEXPRESS;Integrated Security=SSPI"/>
  </connectionStrings>
</configuration>"#;
    assert_eq!(
        one("Web.config", text),
        [
            "Main: SQLServer SQL Server localhost:1433 app u a&b\"",
            "Shop: MySql MySQL h:3306 shop u p",
            "Pg: PostgreSQL PostgreSQL h:5432 pg u p",
            "Model: SQLServer SQL Server h:1433 ef u p",
        ]
    );
    let elsewhere = r#"<configuration><connectionStrings configSource="db.config"/></configuration>"#;
    assert_eq!(one("web.config", elsewhere), ["connectionStrings not: they stand in another file"]);
    let sealed =
        r#"<c><connectionStrings configProtectionProvider="Rsa"><EncryptedData/></connectionStrings></c>"#;
    assert_eq!(
        one("web.config", sealed),
        ["connectionStrings not: they are encrypted for the machine they were made on"]
    );
    assert_eq!(one("web.config", "<a><b></a>"), [" not: it cannot be read as XML to its end"]);
}

fn wordpress(defines: &str) -> Vec<String> {
    one("wp-config.php", &format!("<?php\n{defines}\n"))
}

#[test]
fn word_press() {
    let text = r#"
/** define('DB_NAME', 'commented'); */
// define('DB_NAME', 'commented too');
# it's a comment
define( 'DB_NAME', 'blog' );
DEFINE("DB_USER" , "us\"er\x41\u{e9}");
define('DB_PASSWORD', /* secret */ 'a\'b\\c"$d\n');
define( 'DB_HOST', 'db.example:3307' );
define( 'DB_CHARSET', 'utf8mb4' );
$table_prefix = 'wp7_';
echo "define('DB_NAME', 'no')";
"#;
    assert_eq!(
        wordpress(text),
        ["wordpress: MySql MySQL db.example:3307 blog us\"erAé a'b\\c\"$d\\n (Its tables begin with `wp7_`)"]
    );
    let with = |host: &str| {
        wordpress(&format!(
            "define('DB_NAME','b');define('DB_USER','u');define('DB_PASSWORD','p');define('DB_HOST',{host});"
        ))
    };
    let socket = "(PHP reaches `localhost` through a socket; here it is port 3306)";
    assert_eq!(with("'localhost'"), [format!("wordpress: MySql MySQL localhost:3306 b u p {socket}")]);
    assert_eq!(with("'localhost:/run/m.sock'"), ["wordpress: MySql MySQL socket /run/m.sock 3306 b u p"]);
    assert_eq!(with("':/run/m.sock'"), ["wordpress: MySql MySQL socket /run/m.sock 3306 b u p"]);
    assert_eq!(with("'[::1]:3307'"), ["wordpress: MySql MySQL ::1:3307 b u p"]);
    assert_eq!(with("'::1'"), ["wordpress: MySql MySQL ::1:3306 b u p"]);
    assert_eq!(with("'h:99999'"), ["wordpress not: its port is no number from 1 to 65535"]);
    assert_eq!(with("getenv('DB_HOST')"), ["wordpress not: `DB_HOST` comes from the environment"]);
    assert_eq!(with("getenv_docker('X', 'mysql')"), ["wordpress not: `DB_HOST` comes from the environment"]);
    assert_eq!(with("'a' . 'b'"), ["wordpress not: `DB_HOST` is worked out by PHP"]);
    assert_eq!(with("$host"), ["wordpress not: `DB_HOST` is worked out by PHP"]);
    assert_eq!(with("\"h{$x}\""), ["wordpress not: `DB_HOST` holds a variable of PHP"]);
    assert_eq!(with("'h'); define('DB_HOST', 'i'"), ["wordpress not: `DB_HOST` is defined more than once"]);
    let sample = "define('DB_NAME', 'database_name_here'); define('DB_HOST', 'localhost');";
    assert_eq!(wordpress(sample), ["wordpress not: it is not set up yet"]);
    // Outside of the code nothing counts.
    assert_eq!(
        one("wp-config.php", "define('DB_NAME', 'x'); <?php echo 1; ?> define('DB_HOST', 'y');"),
        [""; 0]
    );
}

#[test]
fn django() {
    let text = r#"
import os
BASE_DIR = Path(__file__).resolve().parent.parent
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.postgresql',
        'NAME': 'app',  # the name
        'USER': "u",
        'PASSWORD': 'p\'w',
        'HOST': 'db.example',
        'PORT': 5433,
        'OPTIONS': {'sslmode': 'require', 'x': [1, (2, 3)]},
        'CONN_MAX_AGE': 60 * 10,
    },
    'old': {'ENGINE': 'django.db.backends.mysql', 'NAME': 'old', 'HOST': '/run/m.sock', 'USER': 'u'},
    'lite': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': BASE_DIR / 'data' / 'db.sqlite3'},
    'joined': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': os.path.join(BASE_DIR, 'j.sqlite3')},
    'secret': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'a', 'PASSWORD': os.environ['X'], 'HOST': 'h'},
    'called': dj_database_url.config(default='postgres://u:p@h/x'),
    'local': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'l'},
    'oracle': {'ENGINE': 'django.db.backends.oracle', 'NAME': 'l'},
}
"#;
    assert_eq!(
        one("site/mysite/settings.py", text),
        [
            "django_default: PostgreSQL PostgreSQL db.example:5433 app u p'w",
            "django_old: MySql MySQL socket /run/m.sock 3306 old u -",
            "django_lite: Custom SQLite file site/data/db.sqlite3 - - - (Its path was worked out from where the settings lie)",
            "django_joined: Custom SQLite file site/j.sqlite3 - - - (Its path was worked out from where the settings lie)",
            "django_local: PostgreSQL PostgreSQL socket /var/run/postgresql 5432 l - - (It names no host; taken for the socket in /var/run/postgresql)",
            "django_secret not: `PASSWORD` is worked out by Python",
            "django_called not: it is worked out by Python",
            "django_oracle not: its engine is none that can be linked",
        ]
    );
    let run = "DATABASES = {'default': env.db()}\nDATABASES['x'] = {}\nif DATABASES == {}: pass";
    assert_eq!(one("mysite/settings/prod.py", run), ["django_default not: it is worked out by Python"]);
    assert_eq!(one("settings.py", "DATABASES: dict = get()"), ["DATABASES not: it is worked out by Python"]);
    assert_eq!(one("settings.py", "# DATABASES = {'a': 1}\nX = 1"), [""; 0]);
}

#[test]
fn rails() {
    let text = "
default: &default
  adapter: postgresql
  encoding: unicode
  pool: <%= ENV.fetch(\"RAILS_MAX_THREADS\") { 5 } %>
  host: db.example # the host
development:
  <<: *default
  database: dev
production:
  <<: *default
  database: app
  username: 'u''s'
  password: \"p\\\"w: #x\"
";
    assert_eq!(
        one("config/database.yml", text),
        ["rails: PostgreSQL PostgreSQL db.example:5432 app u's p\"w: #x"]
    );
    let erb = text.replace("\"p\\\"w: #x\"", "<%= ENV['APP_PASSWORD'] %>");
    assert_eq!(one("config/database.yml", &erb), ["rails not: `password` is worked out by Ruby"]);
    let several = "production:\n  primary:\n    adapter: mysql2\n    database: a\n    host: h\n  cache:\n    url: mysql2://u:p@h/b\n  queue:\n    adapter: sqlite3\n    database: storage/q.sqlite3\n";
    assert_eq!(
        one("shop/config/database.yml", several),
        [
            "rails_primary: MySql MySQL h:3306 a - -",
            "rails_cache: MySql MySQL h:3306 b u p",
            "rails_queue: Custom SQLite file shop/storage/q.sqlite3 - - -",
        ]
    );
    assert_eq!(one("config/database.yml", "development:\n  adapter: sqlite3\n  database: x"), [""; 0]);
}

#[test]
fn the_environment_of_an_app_service() {
    let variables = [
        ("MYSQLCONNSTR_localdb", "Database=localdb;Data Source=127.0.0.1:54306;User Id=azure;Password=p"),
        ("POSTGRESQLCONNSTR_pg", "Server=h;Database=app;Port=5432;User Id=u;Password=p"),
        ("SQLAZURECONNSTR_Main", "Server=tcp:h,1433;Database=app;User ID=u;Password=p"),
        ("SQLCONNSTR_Main", "Server=i;Database=app;User ID=u;Password=p"),
        ("CUSTOMCONNSTR_odd", "postgres://u:p@h/odd"),
        ("CUSTOMCONNSTR_redis", "h:6380,password=x=,ssl=True"),
        ("PATH", "/bin"),
    ];
    assert_eq!(
        told(&environment(variables)),
        [
            "odd: PostgreSQL PostgreSQL h:5432 odd u p",
            "localdb: MySql MySQL 127.0.0.1:54306 localdb azure p",
            "pg: PostgreSQL PostgreSQL h:5432 app u p",
            "Main: SQLServer SQL Server h:1433 app u p",
            "Main_2: SQLServer SQL Server i:1433 app u p",
            "redis not: The connection string cannot be used: nothing in it tells the kind of database; give it the type MySql, PostgreSQL, SQLServer or SQLAzure",
        ]
    );
}

#[test]
fn candidates_are_files_of_the_app_itself() {
    for path in [
        ".env",
        "a/.env.local",
        "wp-config.php",
        "site/settings.py",
        "x/settings/base.py",
        "config/database.yml",
        "Web.config",
        "appsettings.Development.json",
        "appsettings.json",
    ] {
        assert!(is_candidate(path), "{path}");
    }
    for path in [
        "",
        "env",
        ".env.example",
        "vendor/x/.env",
        "node_modules/a/.env",
        "database.yml",
        "a.json",
        "wp-config-sample.php",
        "settings/x.txt",
    ] {
        assert!(!is_candidate(path), "{path}");
    }
}

#[test]
fn values_are_shown_nowhere() {
    let found = look(&[
        (
            ".env",
            "DATABASE_URL=postgres://u:hunter2@h/app\nX_DATABASE_URL=hunter2\nDB_HOST=h\nDB_PASSWORD=hunter2\nDB_PORT=hunter2",
        ),
        (
            "wp-config.php",
            "<?php define('DB_NAME', 'a'); define('DB_PASSWORD', 'hunter2'); define('DB_HOST', 'h:hunter2');",
        ),
        ("config/database.yml", "production:\n  adapter: hunter2\n  database: hunter2"),
        ("settings.py", "DATABASES = {'default': {'ENGINE': 'hunter2', 'PASSWORD': 'hunter2'}}"),
        ("appsettings.json", "{\"ConnectionStrings\": {\"a\": \"hunter2\"}, hunter2}"),
    ]);
    assert!(found.strings.len() == 1 && found.unread.len() >= 5, "{found:?}");
    assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
}
