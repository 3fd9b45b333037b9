package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	offered      = 1500 // a second
	capacity     = 500  // 100 at once, 200 ms each
	leastGood    = 450
	mostRefusal  = 50 * time.Millisecond
	mostRecovery = 10 * time.Second
	easy         = 300 // a second, once it is over
)

// result is what became of one request.
type result struct {
	began  time.Time
	took   time.Duration
	status int // 0: no answer
	failed error
	honest bool
}

// measureOverload offers three times what can be served, then less than that.
func measureOverload(l *lab, o options) (bool, error) {
	length := o.time
	if length == 0 {
		length = time.Minute
	}
	c := &caller{url: "http://" + l.addr + "/v1/messages", body: bodyOf(request(modelReply, 1000, false)), client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 4000, MaxIdleConns: 4000, DisableCompression: true}, Timeout: 30 * time.Second,
	}}
	c.offer(easy, 2*time.Second) // connections stand
	over := c.offer(offered, length)
	ended := time.Now()
	after := c.offer(easy, mostRecovery+5*time.Second)

	var refused []time.Duration
	good, odd, dishonest := 0, 0, 0
	for _, r := range over {
		switch r.status {
		case http.StatusOK:
			good++
		case 529:
			refused = append(refused, r.took)
			if !r.honest {
				dishonest++
			}
		default:
			if odd++; odd <= 3 {
				fmt.Printf("  status %d, %v, %v after the start\n", r.status, r.failed, r.began.Sub(over[0].began).Round(time.Millisecond))
			}
		}
	}
	recovered := ended
	for _, r := range after {
		if r.status != http.StatusOK && r.began.After(recovered) {
			recovered = r.began
		}
	}
	rate := float64(good) / length.Seconds()
	fmt.Printf("  %d a second offered for %v: %d served, %d refused\n", offered, length, good, len(refused))
	ok := bar(rate >= leastGood, "goodput: %.0f a second of %d, at least %d", rate, capacity, leastGood)
	ok = bar(quantile(refused, 0.99) < mostRefusal, "refusals p50 %v, p99 %v, below %v", quantile(refused, 0.5), quantile(refused, 0.99), mostRefusal) && ok
	ok = bar(dishonest == 0 && odd == 0, "without retry-after: %d; neither served nor refused: %d", dishonest, odd) && ok
	return bar(recovered.Sub(ended) < mostRecovery, "the last refusal came %v after the overload, within %v", recovered.Sub(ended).Round(time.Millisecond), mostRecovery) && ok, nil
}

func bodyOf(wire []byte) []byte {
	_, body, _ := bytes.Cut(wire, []byte("\r\n\r\n"))
	return body
}

type caller struct {
	client *http.Client
	url    string
	body   []byte
}

// offer sends requests at a steady rate, whatever becomes of those before.
func (c *caller) offer(perSecond int, length time.Duration) []result {
	n := int(length.Seconds() * float64(perSecond))
	results := make([]result, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		wg.Go(func() { results[i] = c.call() })
	}
	wg.Wait()
	return results
}

func (c *caller) call() result {
	r := result{began: time.Now()}
	req, err := http.NewRequest(http.MethodPost, c.url, bytes.NewReader(c.body))
	if err != nil {
		return r
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	resp, err := c.client.Do(req)
	if err != nil {
		r.failed = err
		return r
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		r.failed = err
		return r
	}
	r.took, r.status = time.Since(r.began), resp.StatusCode
	after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	r.honest = err == nil && 1 <= after && after <= 60
	return r
}
