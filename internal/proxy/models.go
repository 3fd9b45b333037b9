package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// How the lists of models are kept. Clients wait 3 s for the list, and it shall be
// there in half of one: what has not come by then is in the next.
const (
	listFresh    = 5 * time.Minute  // then it is fetched again, in the background
	listRetry    = 30 * time.Second // after a fetch that failed
	listPatience = 400 * time.Millisecond
	listTimeout  = 10 * time.Second // of one fetch
	maxList      = 4 << 20          // bytes
	maxModelName = 512              // bytes, as in a body
)

// catalog is what the upstreams say of their models.
type catalog struct {
	mu    sync.Mutex
	lists map[*router.Upstream]*modelList
}

// modelList is what one upstream said. It is guarded by the catalog's mu.
type modelList struct {
	told
	next   time.Time     // when it may be fetched again
	coming chan struct{} // closed when the fetch under way is over; nil: none is
}

// told is a copy of what an upstream said last.
type told struct {
	models  []model
	byID    map[string]model // nil: it never told any
	err     error            // of the last fetch
	waiting bool             // for the first answer
}

// model is an entry of a list, in the API's shape.
type model struct {
	id        string
	lifecycle string // "" where the list does not say
	object    json.RawMessage
}

// Refresh fetches every list that is not fresh, in the background, and drops those of
// upstreams that the configuration in force does not have. The first client need not
// wait then: call it after NewHandler and after Swap.
func (h *Handler) Refresh() {
	ups := h.live.Load().Router.Upstreams()
	for _, up := range ups {
		h.refresh(up)
	}
	h.models.keep(ups)
}

// refresh begins a fetch where one is due and returns what is closed when the first
// one is over; nil: the upstream has told its models, or it is not being asked.
func (h *Handler) refresh(up *router.Upstream) <-chan struct{} {
	c := h.models
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lists == nil {
		c.lists = map[*router.Upstream]*modelList{}
	}
	l := c.lists[up]
	if l == nil {
		l = &modelList{}
		c.lists[up] = l
	}
	if l.coming == nil && !time.Now().Before(l.next) {
		l.coming = make(chan struct{})
		go h.fetch(up, l)
	}
	if l.byID != nil {
		return nil
	}
	return l.coming
}

// fetch asks for a list. What an upstream told once stays until it tells another.
func (h *Handler) fetch(up *router.Upstream, l *modelList) {
	ctx, cancel := context.WithTimeout(h.base, listTimeout)
	defer cancel()
	models, err := h.fetchModels(ctx, up)
	// l.err is written here only, and a list is fetched once at a time. Said before it is
	// told: whoever gets an error for it finds the reason in the log.
	if err != nil && l.err == nil && h.base.Err() == nil {
		// Nothing of the error: it may quote the request.
		var status statusError
		errors.As(err, &status)
		h.log.Warn().Str("upstream", up.Provider.Name()).Int("status", int(status)).Msg("provider does not tell its models; lists of models lack them")
	}
	c := h.models
	c.mu.Lock()
	defer c.mu.Unlock()
	l.err, l.next = err, time.Now().Add(listRetry)
	if err == nil {
		l.next = time.Now().Add(listFresh)
		l.models, l.byID = models, byID(models)
	}
	close(l.coming)
	l.coming = nil
}

func byID(models []model) map[string]model {
	if len(models) == 0 {
		return nil
	}
	ids := make(map[string]model, len(models))
	for _, m := range models {
		ids[m.id] = m
	}
	return ids
}

// keep drops the lists of all other upstreams.
func (c *catalog) keep(ups []*router.Upstream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.lists, func(up *router.Upstream, _ *modelList) bool { return !slices.Contains(ups, up) })
}

// of returns what is known of these upstreams' models.
func (c *catalog) of(ups []*router.Upstream) map[*router.Upstream]told {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[*router.Upstream]told, len(ups))
	for _, up := range ups {
		if l := c.lists[up]; l != nil {
			t := l.told
			t.waiting = l.coming != nil && l.byID == nil
			all[up] = t
		}
	}
	return all
}

// statusError is a status that is no list.
type statusError int

func (e statusError) Error() string { return "status " + strconv.Itoa(int(e)) }

// fetchModels asks an upstream for its models: the one call that costs nothing.
func (h *Handler) fetchModels(ctx context.Context, up *router.Upstream) (models []model, err error) {
	defer func() {
		if p := recover(); p != nil { // as one request, it does not end the others
			h.log.Error().Str("upstream", up.Provider.Name()).Str("panic", fmt.Sprintf("%T", p)).Bytes("stack", debug.Stack()).Msg("asking for models failed inside the relay")
			err = errPanic
		}
	}()
	out, spent := keysOut(up.Pool)
	key, err := up.Pool.Acquire(ctx, keypool.Demand{Class: keypool.ClassModels, Exclude: out})
	if err != nil {
		var exhausted *keypool.ExhaustedError
		if errors.As(err, &exhausted) && spent { // it does not look at those it may not use
			exhausted.Reason = keypool.ReasonSpent
		}
		return nil, err
	}
	defer key.Settle(keypool.Usage{})
	call := provider.Call{Method: http.MethodGet, Path: "/v1/models", RawQuery: "limit=1000", Header: http.Header{"Anthropic-Version": {"2023-06-01"}}}
	req, err := up.Provider.NewRequest(ctx, &call, key.APIKey())
	if err != nil {
		return nil, err
	}
	resp, err := up.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxList))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNotFound: // it has none to tell
		return nil, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, statusError(resp.StatusCode)
	}
	if models, err = parseModels(body); err == nil {
		key.Succeeded()
	}
	return models, err
}

var errPanic = errors.New("proxy: panic")

// keysOut are the keys that are not to be used for a list, besides those that are off
// and never are, and whether some have nothing left to spend. The one request that tries a key now and then shall be one that shows
// whether it serves. A list does only where the key was refused, so it tries such a key
// where there is no other.
func keysOut(pool *keypool.KeyPool) (ids []string, spent bool) {
	keys := pool.Keys()
	var broke []string
	off := 0
	for i := range keys {
		if keys[i].State == keypool.StateOff {
			off++
		}
		if keys[i].State != keypool.StateDead {
			continue
		}
		ids = append(ids, keys[i].ID)
		if keys[i].Reason == keypool.ReasonSpent {
			broke = append(broke, keys[i].ID)
		}
	}
	if len(ids)+off == len(keys) {
		ids = broke
	}
	return ids, len(broke) > 0
}

func parseModels(body []byte) ([]model, error) {
	var list struct {
		Data []json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, errors.New("the list of models is not JSON")
	}
	models := make([]model, 0, len(list.Data))
	for _, raw := range list.Data {
		var head struct {
			ID        string `json:"id"`
			Type      string `json:"type"`
			Lifecycle string `json:"lifecycle"`
		}
		if err := json.Unmarshal(raw, &head); err != nil || head.ID == "" {
			continue
		}
		one := model{head.ID, head.Lifecycle, raw}
		if head.Type != "model" { // of a list in another vendor's shape, which clients cannot read
			one.object = bare(head.ID).object
		}
		models = append(models, one)
	}
	return models, nil
}

// serveModels lists the models that the rules lead somewhere, for this client, or
// tells of one of them. It takes no key's capacity.
func (h *Handler) serveModels(w http.ResponseWriter, x *exchange) {
	x.demand.Class = keypool.ClassModels
	id, one := strings.CutPrefix(x.r.URL.Path, modelPath)
	if one && x.live.scrub.Load().clean(id) != id { // providers log what they are asked for
		x.refuse(w, http.StatusNotFound, messages.NotFound, "model: no model has a name with a key or token in it")
		return
	}
	if x.own {
		h.relay(w, x)
		return
	}
	if one {
		h.serveModel(w, x, id)
		return
	}
	o := h.offer(x)
	models := o.all()
	if failed := o.failure(); failed != nil && len(models) == 0 {
		failed.write(w, x)
		return
	}
	page, err := pageOf(models, x.r.URL.Query())
	if err != nil {
		x.refuse(w, http.StatusBadRequest, messages.InvalidRequest, err.Error())
		return
	}
	x.writeOwn(w, page)
}

// serveModel tells of one model: what is not in the list is asked for, such as the
// name of a model without its date.
func (h *Handler) serveModel(w http.ResponseWriter, x *exchange, id string) {
	x.model = id
	if len(id) > maxModelName {
		x.refuse(w, http.StatusNotFound, messages.NotFound, "model: the name is longer than that of any model")
		return
	}
	o := h.offer(x)
	e := o.find(id)
	if e.listed || e.rewritten || slices.Contains(x.live.Router.Names(x.client), id) {
		x.writeOwn(w, e.object)
		return
	}
	h.relay(w, x)
}

// writeOwn writes an answer of the relay's own.
func (x *exchange) writeOwn(w http.ResponseWriter, body []byte) {
	x.outcome = outcomeServed
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", x.id)
	w.Header()["Cache-Control"] = noStore
	x.expose(w.Header())
	x.writeBody(w, http.StatusOK, body)
}

// offer is what models there are for the client of one request.
type offer struct {
	x     *exchange
	lists map[*router.Upstream]told
}

// offer begins the fetches that are due and waits a little for those of upstreams
// that nothing is known of yet.
func (h *Handler) offer(x *exchange) *offer {
	ups := x.live.Router.Upstreams()
	var coming []<-chan struct{}
	for _, up := range ups { // all of them first: none shall wait for another
		if c := h.refresh(up); c != nil {
			coming = append(coming, c)
		}
	}
	patience := time.NewTimer(listPatience)
	defer patience.Stop()
wait:
	for _, c := range coming {
		select {
		case <-c:
		case <-patience.C:
			break wait
		case <-x.r.Context().Done():
			break wait
		}
	}
	o := &offer{x: x, lists: h.models.of(ups)}
	h.models.keep(h.live.Load().Router.Upstreams()) // which need not be those of x.live
	return o
}

// all are the models that requests of the client are led somewhere with: those that
// upstreams list, and those that rules and aliases name.
func (o *offer) all() (models []model) {
	r := o.x.live.Router
	seen := map[string]bool{}
	add := func(m model) {
		seen[m.id] = true
		models = append(models, m)
	}
	for _, up := range r.Upstreams() {
		for _, m := range o.lists[up].models {
			if seen[m.id] {
				continue
			}
			switch e := o.find(m.id); {
			case e.listed:
				add(e.model)
			case e.perhaps:
				add(m)
			}
		}
	}
	for _, name := range r.Names(o.x.client) {
		if !seen[name] {
			add(o.find(name).model)
		}
	}
	return models
}

// entry is what is known of one name.
type entry struct {
	model
	listed    bool // by the upstream that it leads to
	perhaps   bool // no upstream that it leads to lists it, but one may know it
	rewritten bool // an upstream is asked for another name
}

// find looks for what a name leads to.
func (o *offer) find(name string) (e entry) {
	live := o.x.live
	for _, t := range live.Router.Targets(name, live.Classes.Of(name), o.x.client) {
		l := o.lists[t.Upstream]
		m, listed := l.byID[t.Model]
		if listed && !e.listed {
			e.model, e.listed = m.named(name), true
		}
		e.perhaps = e.perhaps || t.Named || l.byID == nil
		e.rewritten = e.rewritten || t.Model != name
	}
	if !e.listed {
		e.model = bare(name)
	}
	return e
}

// named is the entry under another name.
func (m model) named(name string) model {
	if m.id == name {
		return m
	}
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(m.object, &fields) != nil {
		return bare(name)
	}
	fields["id"], _ = json.Marshal(name) // a string cannot fail to encode
	object, _ := json.Marshal(fields)    // nor what was just decoded
	return model{name, m.lifecycle, object}
}

// bare is the entry of a model that no upstream lists, or not in this shape: its name is
// all there is to say.
func bare(name string) model {
	object, _ := json.Marshal(struct { // strings cannot fail to encode
		Type        string `json:"type"`
		ID          string `json:"id"`
		DisplayName string `json:"display_name"`
		CreatedAt   string `json:"created_at"`
	}{"model", name, name, "1970-01-01T00:00:00Z"})
	return model{id: name, object: object}
}

// failure is why nothing is known of an upstream's models; nil: all have answered. It
// is told at once: to ask again may take as long as an answer.
func (o *offer) failure() *failure {
	f, silent := &failure{}, false
	for _, up := range o.x.live.Router.Upstreams() {
		switch l := o.lists[up]; {
		case l.err != nil:
			silent = true
			f.refused(place{up.Provider.Name(), keypool.ClassModels}, l.err)
			var exhausted *keypool.ExhaustedError
			if !errors.As(l.err, &exhausted) {
				f.broken = &reply{status: http.StatusBadGateway, message: "provider " + up.Provider.Name() + " does not tell its models"}
			}
		case l.waiting:
			silent = true
			f.broken = &reply{status: http.StatusGatewayTimeout, message: "provider " + up.Provider.Name() + " has not told its models yet"}
		}
	}
	if !silent {
		return nil
	}
	return f
}

// pageOf is one page of a list, as the API cuts it. Source:
// https://platform.claude.com/docs/en/api/models-list.
func pageOf(models []model, query url.Values) ([]byte, error) {
	limit := 20
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			return nil, errors.New("limit: write a number from 1 to 1000")
		}
		limit = n
	}
	models = inStages(models, slices.Concat(query["lifecycle"], query["lifecycle[]"]))
	at := func(id string) int { return slices.IndexFunc(models, func(m model) bool { return m.id == id }) }
	more := false
	if before := query.Get("before_id"); before != "" {
		models = models[:max(at(before), 0)]
		more = len(models) > limit
		models = models[max(0, len(models)-limit):]
	} else {
		if after := query.Get("after_id"); after != "" {
			i := at(after)
			if i < 0 {
				i = len(models) - 1
			}
			models = models[i+1:]
		}
		more = len(models) > limit
		models = models[:min(limit, len(models))]
	}
	page := struct {
		Data    []json.RawMessage `json:"data"`
		HasMore bool              `json:"has_more"`
		FirstID *string           `json:"first_id"`
		LastID  *string           `json:"last_id"`
	}{Data: []json.RawMessage{}, HasMore: more}
	for _, m := range models {
		page.Data = append(page.Data, m.object)
	}
	if n := len(models); n > 0 {
		page.FirstID, page.LastID = &models[0].id, &models[n-1].id
	}
	return json.Marshal(page)
}

// inStages leaves the models in these stages of their life; where none are named, all
// but the retired ones. A model is active unless its list says otherwise.
func inStages(models []model, wanted []string) []model {
	if len(wanted) == 0 {
		wanted = []string{"active", "deprecated"}
	}
	return slices.DeleteFunc(models, func(m model) bool { return !slices.Contains(wanted, cmp.Or(m.lifecycle, "active")) })
}

// Watch asks, while a breaker is open, whether the upstream is back, by the free call
// that lists its models, as often as the upstream's HealthCheck says, until ctx ends.
func (h *Handler) Watch(ctx context.Context, up *router.Upstream) {
	if up.HealthCheck <= 0 {
		return
	}
	ticker := time.NewTicker(up.HealthCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		up.Probe(func() (well, known bool) {
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			_, err := h.fetchModels(ctx, up)
			var status statusError
			if errors.Is(err, keypool.ErrAllKeysExhausted) {
				return false, false // it was not asked
			}
			return err == nil || errors.As(err, &status) && status < 500, true // a key's condition is not the provider's
		})
	}
}
