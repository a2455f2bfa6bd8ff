-- A key's check and its three limits. A sliding window is counted as Cloudflare does it: what came in this minute, hour or day,
-- and of what came in the one before the part that the window still covers. No window is told to the client.
local counters, keys = ngx.shared.counters, ngx.shared.keys
local floor, now, var, exit = math.floor, ngx.now, ngx.var, ngx.exit
local WINDOWS = { { 60, 1e9 }, { 3600, 1e9 }, { 86400, 1e9 } }

local M = {}
-- By key and window, so that names are put together once in each: { the window's number, its counter, the one before }.
local names = {}

local function named(key, i, number)
  local found = names[key][i]
  if found[1] ~= number then
    found[1] = number
    found[2] = key .. "/" .. i .. "/" .. number
    found[3] = key .. "/" .. i .. "/" .. number - 1
  end
  return found
end

function M.add(key)
  keys:set(key, true)
  names[key] = { {}, {}, {} }
end

function M.check()
  local key = var.http_x_api_key
  if not key or not keys:get(key) then
    return exit(401)
  end
  local moment = now()
  for i = 1, 3 do
    local seconds, limit = WINDOWS[i][1], WINDOWS[i][2]
    local number = floor(moment / seconds)
    local name = named(key, i, number)
    local used = counters:incr(name[2], 1, 0, 2 * seconds)
    local before = counters:get(name[3]) or 0
    if used + before * (1 - (moment / seconds - number)) > limit then
      return exit(429)
    end
  end
end

return M
