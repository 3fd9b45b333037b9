package admin

// RouteInfo is a row of the table of routes: the tests walk all of them with each
// kind of credential, and compare them with the document.
type RouteInfo struct{ Method, Path, Access, Action string }

// Routes is the table.
func Routes() []RouteInfo {
	names := map[access]string{open: "open", reader: "reader", actor: "actor"}
	all := make([]RouteInfo, len(routes))
	for i, r := range routes {
		all[i] = RouteInfo{Method: r.method, Path: r.path, Access: names[r.access], Action: r.action}
	}
	return all
}

// MaxListeners bounds event streams.
const MaxListeners = maxListeners

// KeptTokens is all that h keeps of the tokens: how they are kept cannot be seen outside.
func (h *Handler) KeptTokens() any { return *h.tokens.Load() }
