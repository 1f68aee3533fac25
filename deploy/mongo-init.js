// Makes a mongod that is up the primary of its own replica set, and the user that the application is.
// Run by mongosh, before every start of the application: what is there already is left as it is,
// except that the user gets the password and the rights that are given here.
//
//   mongosh --nodb --norc --quiet deploy/mongo-init.js
//
// Reads MONGO_HOST ("mongo:27017": where mongod is, and its name in the replica set),
// MONGO_REPLICA_SET, MONGO_ROOT_PASSWORD, MONGO_APP_PASSWORD, MONGO_APP_DATABASE.

const HOST = setting("MONGO_HOST");
const REPLICA_SET = setting("MONGO_REPLICA_SET");
const ROOT_PASSWORD = setting("MONGO_ROOT_PASSWORD");
const APP_PASSWORD = setting("MONGO_APP_PASSWORD");
const APP_DATABASE = setting("MONGO_APP_DATABASE");

const APP_USER = "coupon";
const WAIT_MS_MAX = 60_000;
const RETRY_MS = 500;
// MongoDB's codes.
const AUTHENTICATION_FAILED = 18;
const ALREADY_INITIALIZED = 23;

function setting(name) {
  const value = process.env[name];
  if (!value) {
    throw new Error(`set ${name}`);
  }
  return value;
}

// Tries until it gives something, for mongod may only be starting.
function patiently(what, attempt) {
  const until = Date.now() + WAIT_MS_MAX;
  for (;;) {
    let trouble = "not yet";
    try {
      const result = attempt();
      if (result) {
        return result;
      }
    } catch (error) {
      if (error.code === AUTHENTICATION_FAILED) {
        throw new Error(
          `${HOST} does not accept MONGO_ROOT_PASSWORD: give the one that the data was first made with, ` +
            "or, if the very first start was cut short, delete the volume of MongoDB and start again",
        );
      }
      trouble = error.message;
    }
    if (Date.now() > until) {
      throw new Error(`could not ${what} within ${WAIT_MS_MAX / 1000} s: ${trouble}`);
    }
    sleep(RETRY_MS);
  }
}

// To this one server, which has no primary to look for yet.
function connect() {
  const user = `root:${encodeURIComponent(ROOT_PASSWORD)}`;
  const options = "authSource=admin&directConnection=true&serverSelectionTimeoutMS=2000";
  return new Mongo(`mongodb://${user}@${HOST}/?${options}`).getDB("admin");
}

function initiate(admin) {
  try {
    admin.adminCommand({
      replSetInitiate: { _id: REPLICA_SET, members: [{ _id: 0, host: HOST }] },
    });
    print(`made the replica set ${REPLICA_SET} of ${HOST}`);
  } catch (error) {
    if (error.code !== ALREADY_INITIALIZED) {
      throw error;
    }
  }
  return true;
}

function grant(admin) {
  const rights = { pwd: APP_PASSWORD, roles: [{ role: "readWrite", db: APP_DATABASE }] };
  if (admin.getUser(APP_USER)) {
    admin.updateUser(APP_USER, rights);
  } else {
    admin.createUser({ user: APP_USER, ...rights });
    print(`made the user ${APP_USER}`);
  }
}

const admin = patiently("connect", connect);
patiently("make the replica set", () => initiate(admin));
patiently("see it become the primary", () => admin.hello().isWritablePrimary);
grant(admin);
print("MongoDB is ready");
