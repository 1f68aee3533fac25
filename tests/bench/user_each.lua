-- A wrk script: each request asks for the same coupon for another user.
--   wrk … -s user_each.lua URL -- COUPON PREFIX [PATH FIELD]
-- Users' ids begin with PREFIX, which no other run for the same coupon may have had. FIELD of the body names the
-- coupon.

local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set('number', threads)
end

local before, after, asked = nil, nil, 0
function init(args)
  local path, field = args[3] or '/user-coupons', args[4] or 'couponId'
  before = 'POST ' .. path .. ' HTTP/1.1\r\nHost: ' .. wrk.headers['Host'] ..
    '\r\nContent-Type: application/json\r\nContent-Length: '
  after = '\r\n\r\n{"' .. field .. '":"' .. args[1] .. '","userId":"' .. args[2] .. number .. '-'
end

-- The body without the digits of the user's number.
local function fixed() return #after - 4 + 2 end

function request()
  asked = asked + 1
  local user = string.format('%d', asked)
  return before .. (fixed() + #user) .. after .. user .. '"}'
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'FIGURES {"requests":%d,"seconds":%.3f,"refused":%d,"broken":%d,"p50Ms":%.3f,"p99Ms":%.3f,"maxMs":%.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
