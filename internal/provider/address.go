package provider

import (
	"errors"
	"net/netip"
	"syscall"
)

// errForbidden says that a name leads to where no provider can be.
var errForbidden = errors.New("the address is not one of a provider: unspecified, link-local, multicast, broadcast or a cloud's metadata service")

// forbidden reports whether no provider can be at an address, whoever says so: a base
// URL or a name server. Loopback and private addresses are allowed: only operators
// write base URLs, and their gateways are there. A cloud's metadata service gives away
// the machine's credentials; it is link-local, but for one of AWS. Source:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html.
func forbidden(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a == broadcast || a == metadata6
}

var (
	broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	metadata6 = netip.MustParseAddr("fd00:ec2::254")
)

// refuseForbidden is the Control of a dialer: it sees each address after it was
// resolved and right before the connect, so that no second answer of a name server
// comes between.
func refuseForbidden(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err == nil && forbidden(at.Addr()) {
		err = errForbidden
	}
	return err
}
